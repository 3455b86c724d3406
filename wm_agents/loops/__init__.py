"""How a dream is made: round by round, or online."""
