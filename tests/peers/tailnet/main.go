// The other end of our tailnet: Tailscale's own code, in the variant that Coder's deployments run.
//
// `node` is a whole node that obeys lines of JSON (control.go); the others are only the two ends of a relay or of a speed
// test. Each says what a test waits for as lines on its standard output, and ends with its standard input.
package main

import (
	"fmt"
	"io"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("need a command: node, derp-server, derp-client, speedtest-server or speedtest-client"))
	}
	var err error
	switch os.Args[1] {
	case "node":
		err = runNode(os.Args[2:])
	case "derp-server":
		go endWithInput()
		err = derpServer()
	case "derp-client":
		go endWithInput()
		err = derpClient(os.Args[2:])
	case "speedtest-client":
		go endWithInput()
		err = speedtestClient(os.Args[2:])
	case "speedtest-server":
		go endWithInput()
		err = speedtestServer()
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	if err != nil {
		fail(err)
	}
}

func endWithInput() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
