"""From files and flags to pictures and videos."""
