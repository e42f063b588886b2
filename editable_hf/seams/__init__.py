"""What depends on how other libraries are built inside, a module for each, which imports no other module of ours."""
