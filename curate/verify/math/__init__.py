"""Mathematical answers: lexer, parser and comparison."""
