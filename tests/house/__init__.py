"""The house's own promises: locks, install, containers, lint rules."""
