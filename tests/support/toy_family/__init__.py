"""A third model family in a folder of its own: two heads, three losses, two lanes, a teacher."""
