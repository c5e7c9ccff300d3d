"""The terms of the loss. L = sum_t w_t [terms of teacher t] + priors; a file is a term, or a few that are one idea."""
