"""Arrays to pictures for people: overlays, colours, charts, contact sheets, pages."""
