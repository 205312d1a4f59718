"""The allocators that CERO is compared with, a family a file; `ALLOCATORS` names them."""
