"""Images and data sets: one reader, one file per layout, each giving ``Sample``."""
