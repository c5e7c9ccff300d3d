"""Preferred images of units: made, read, matched, drawn."""
