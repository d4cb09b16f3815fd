"""What a first training on two hundred images reaches, beside a plain script with the same backbone."""
