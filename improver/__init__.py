"""The improvement cycle: from the record to a better adapter. Nothing here serves a request."""
