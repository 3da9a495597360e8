module databases

go 1.21
