"""What a trunk can make of what it receives. Each attack says what it has to know."""
