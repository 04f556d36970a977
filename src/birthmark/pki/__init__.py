"""Public key infrastructure: names, profiles, issuance, lint, requests and proofs.  Pure: nothing acts."""
