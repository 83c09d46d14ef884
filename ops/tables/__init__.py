"""The parts of the store: siblings over `base`, each with the SQL of one noun."""
