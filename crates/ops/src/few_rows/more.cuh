// Before the rest: up to 32 rows of x, and twice as many rows of a matrix a block, which reads x whole, so that it is read half as often.
#define MORE_ROWS
