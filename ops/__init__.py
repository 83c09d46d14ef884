"""What the other packages lean on: settings, records, store, registry, processes, commands."""
