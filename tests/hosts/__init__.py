"""Several hosts on one machine: network namespaces with a raylet each, latency, and links that can be cut."""
