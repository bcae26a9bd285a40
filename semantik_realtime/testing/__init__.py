"""For the tests of backends and applications: the contract suite, and real servers."""
