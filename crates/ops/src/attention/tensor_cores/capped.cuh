// Before what the files of attention on tensor cores share: scores have a cap.
#define CAPPED
