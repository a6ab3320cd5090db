"""The paper's tables, figures and claims, with the numbers that an archive has for them."""
