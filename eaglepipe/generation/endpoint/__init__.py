"""`data regenerate` by servers that speak OpenAI's protocol."""
