"""Several hosts on one machine: network namespaces with a raylet in each, a wire with latency, and links that can be cut."""
