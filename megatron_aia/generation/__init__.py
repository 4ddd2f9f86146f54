"""Pictures and answers from a model, in any layout."""
