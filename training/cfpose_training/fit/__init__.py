"""From a user's annotations to an artifact: a recipe, its steps in order, and its figures."""
