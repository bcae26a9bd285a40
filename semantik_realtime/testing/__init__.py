"""For tests of applications and of other backends: the contract suite and real servers."""
