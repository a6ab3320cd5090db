"""Tables, figures and pages made from what an archive holds."""
