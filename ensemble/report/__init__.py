"""Results folders as one HTML file: what is read, how pictures travel, and the page."""
