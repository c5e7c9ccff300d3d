"""One file a command. Those with `ON_RANKS` may be started as several ranks; all others are one process."""
