"""Weight synchronisation from the learner to rollout workers: messages, verification, transport."""
