"""The HTTP API: OpenAI-compatible, verified, recorded. Empty on purpose: import the module you need."""
