"""Arrays to something to look at: overlays, colours, charts, contact sheets, pages."""
