module zoogrpc

go 1.24

require (
	golang.org/x/sys v0.33.0
	google.golang.org/grpc v1.75.0
)
