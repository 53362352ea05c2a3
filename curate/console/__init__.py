"""What commands print for a person: results of SQL, a prompt for it, traces and problems."""
