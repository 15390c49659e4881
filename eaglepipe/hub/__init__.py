"""Access to the Hugging Face Hub: attempts repeated with back-off inside a minute, and failures told apart."""
