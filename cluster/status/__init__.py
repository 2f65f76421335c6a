"""How runs, sharding and jobs are, for someone on call: processes asked, judged in words, drawn on a terminal."""
