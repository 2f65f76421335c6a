"""What both packages need to say how they are: metrics and their table, and what the host has left."""
