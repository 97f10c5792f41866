"""Parts that the commands share: tables, wrapped text, files, players, the terminal."""
