"""Other people's frameworks: their models and loops in, a criterion of this library in place of their losses out."""
