"""The HTTP API: OpenAI-compatible, verified, recorded. Import the module you need."""
