// Before what the files of attention on tensor cores share: heads of up to 256 channels, by `mma` on Hopper, too.
#undef HOPPER
