//go:build tools

// Package tools names the commands that the tests build, so that `go mod tidy` keeps what they need.
package tools

import _ "sigs.k8s.io/kwok/cmd/kwok"
