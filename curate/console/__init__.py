"""Output for the terminal: results of SQL, a SQL prompt, traces and problems."""
