"""What may be asked and said: declarations and values every room shares. Validated, without behaviour."""
