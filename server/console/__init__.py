"""The console: pages for people under `/console`, rendered here, that need nothing from elsewhere.

`routes` lists the pages, one module each; `base` is what they share, `door` who may come in.
"""
