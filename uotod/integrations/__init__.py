"""Other people's frameworks: a module each, which users import by its name."""
