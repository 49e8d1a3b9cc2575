package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/hashicorp/yamux"
	"storj.io/drpc/drpcconn"
	"storj.io/drpc/drpcerr"
	"storj.io/drpc/drpcmanager"
	"storj.io/drpc/drpcmetadata"
	"storj.io/drpc/drpcwire"
)

const patience = 30 * time.Second

// client makes each call on a yamux stream of its own, as the Go agent does.
type client struct{ session *yamux.Session }

func call(url, name string) error {
	run, ok := cases[name]
	if !ok {
		return fmt.Errorf("unknown case %q", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	socket, _, err := websocket.Dial(ctx, url, nil)
	if err != nil {
		return err
	}
	session, err := yamux.Client(stream(socket), yamuxConfig())
	if err != nil {
		return err
	}
	defer session.Close()
	c := client{session}
	if err := run(ctx, c); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if _, err := c.unary(ctx, "/peer/Echo", []byte("afterwards")); err != nil {
		return fmt.Errorf("the connection is of no more use after %s: %w", name, err)
	}
	return nil
}

func (c client) conn(options drpcmanager.Options) (*drpcconn.Conn, error) {
	stream, err := c.session.OpenStream()
	if err != nil {
		return nil, err
	}
	return drpcconn.NewWithOptions(stream, drpcconn.Options{Manager: options}), nil
}

func (c client) unary(ctx context.Context, rpc string, request []byte) ([]byte, error) {
	conn, err := c.conn(drpcmanager.Options{})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var reply []byte
	err = conn.Invoke(ctx, rpc, raw{}, &request, &reply)
	return reply, err
}

var cases = map[string]func(context.Context, client) error{
	"worked-example": func(ctx context.Context, c client) error {
		_, err := c.unary(ctx, banners, nil)
		return err
	},
	"300-calls": func(ctx context.Context, c client) error {
		var group sync.WaitGroup
		failures := make([]error, 300)
		for i := range failures {
			group.Add(1)
			go func() {
				defer group.Done()
				failures[i] = echo(ctx, c, strconv.AppendInt(nil, int64(i), 10))
			}()
		}
		group.Wait()
		return errors.Join(failures...)
	},
	"script-512000": func(ctx context.Context, c client) error { return fetchPattern(ctx, c, 512_000) },
	"4-mib": func(ctx context.Context, c client) error {
		if err := fetchPattern(ctx, c, 4<<20); err != nil {
			return err
		}
		return echo(ctx, c, pattern(4<<20))
	},
	"4-mib-and-1": func(ctx context.Context, c client) error {
		if _, err := c.unary(ctx, "/peer/Echo", pattern(4<<20+1)); err == nil {
			return errors.New("a request of 4 MiB + 1 was answered")
		}
		_, err := c.unary(ctx, "/peer/Pattern", []byte(strconv.Itoa(4<<20+1)))
		return expect(err, "4194305")
	},
	"unread-stream": func(ctx context.Context, c client) error {
		conn, err := c.conn(drpcmanager.Options{})
		if err != nil {
			return err
		}
		defer conn.Close()
		flood, err := conn.NewStream(ctx, "/peer/Flood", raw{})
		if err != nil {
			return err
		}
		defer flood.Close()
		if err := flood.CloseSend(); err != nil {
			return err
		}
		for range 30 {
			if err := fetchPattern(ctx, c, 300_000); err != nil {
				return err
			}
		}
		return nil
	},
	"cancel-by-fin":   func(ctx context.Context, c client) error { return cancelCall(ctx, c, false) },
	"cancel-by-frame": func(ctx context.Context, c client) error { return cancelCall(ctx, c, true) },
	"unknown-rpc": func(ctx context.Context, c client) error {
		_, err := c.unary(ctx, "/coder.agent.v2.Agent/Nope", nil)
		if drpcerr.Code(err) != 0 {
			return fmt.Errorf("code %d", drpcerr.Code(err))
		}
		return expect(err, `protocol error: unknown rpc: "/coder.agent.v2.Agent/Nope"`)
	},
	"errors": func(ctx context.Context, c client) error {
		_, err := c.unary(ctx, "/peer/Fail", nil)
		if err := expect(err, "outer: inner: cause"); err != nil {
			return err
		}
		_, err = c.unary(ctx, "/peer/Unimplemented", nil)
		if drpcerr.Code(err) != drpcerr.Unimplemented {
			return fmt.Errorf("code %d of %v", drpcerr.Code(err), err)
		}
		return nil
	},
	"server-streaming": func(ctx context.Context, c client) error {
		conn, err := c.conn(drpcmanager.Options{})
		if err != nil {
			return err
		}
		defer conn.Close()
		stream, err := conn.NewStream(ctx, "/peer/Count", raw{})
		if err != nil {
			return err
		}
		request := []byte("5000")
		if err := stream.MsgSend(&request, raw{}); err != nil {
			return err
		}
		if err := stream.CloseSend(); err != nil {
			return err
		}
		for i := range 5000 {
			var message []byte
			if err := stream.MsgRecv(&message, raw{}); err != nil || string(message) != strconv.Itoa(i) {
				return fmt.Errorf("message %d is %q, %v", i, message, err)
			}
		}
		var message []byte
		if err := stream.MsgRecv(&message, raw{}); !errors.Is(err, io.EOF) {
			return fmt.Errorf("no end after the last message: %v", err)
		}
		return stream.Close()
	},
	"duplex-close":      func(ctx context.Context, c client) error { return duplex(ctx, c, false) },
	"duplex-close-send": func(ctx context.Context, c client) error { return duplex(ctx, c, true) },
	"calls-on-one-stream": func(ctx context.Context, c client) error {
		conn, err := c.conn(drpcmanager.Options{})
		if err != nil {
			return err
		}
		defer conn.Close()
		for i := range 20 {
			request, reply := pattern(i*1000), []byte(nil)
			if err := conn.Invoke(ctx, "/peer/Echo", raw{}, &request, &reply); err != nil {
				return err
			}
			if !bytes.Equal(request, reply) {
				return fmt.Errorf("call %d came back changed", i)
			}
		}
		return nil
	},
	"metadata": func(ctx context.Context, c client) error {
		return echo(drpcmetadata.Add(ctx, "traceparent", "00-0af7-b7ad-01"), c, []byte("traced"))
	},
	"broken-packet": func(ctx context.Context, c client) error {
		stream, err := c.session.OpenStream()
		if err != nil {
			return err
		}
		defer stream.Close()
		invoke := drpcwire.Frame{
			ID: drpcwire.ID{Stream: 1, Message: 1}, Kind: drpcwire.KindInvoke, Data: []byte("/peer/Echo"), Done: true,
		}
		again := drpcwire.AppendFrame(drpcwire.AppendFrame(nil, invoke), invoke)
		if _, err := stream.Write(again); err != nil {
			return err
		}
		if _, err := stream.Read(make([]byte, 1)); err == nil {
			return errors.New("two packets of one id were accepted")
		}
		return nil
	},
	"ping": func(ctx context.Context, c client) error {
		_, err := c.session.Ping()
		return err
	},
}

func echo(ctx context.Context, c client, request []byte) error {
	reply, err := c.unary(ctx, "/peer/Echo", request)
	if err == nil && !bytes.Equal(reply, request) {
		err = errors.New("came back changed")
	}
	return err
}

func fetchPattern(ctx context.Context, c client, n int) error {
	reply, err := c.unary(ctx, "/peer/Pattern", []byte(strconv.Itoa(n)))
	if err == nil && !bytes.Equal(reply, pattern(n)) {
		err = errors.New("came back changed")
	}
	return err
}

func expect(err error, text string) error {
	if err == nil || !strings.Contains(err.Error(), text) {
		return fmt.Errorf("expected an error with %q, got %v", text, err)
	}
	return nil
}

// cancelCall gives up a call whose handler never answers, and waits until the server has seen that.
func cancelCall(ctx context.Context, c client, soft bool) error {
	conn, err := c.conn(drpcmanager.Options{SoftCancel: soft})
	if err != nil {
		return err
	}
	if soft { // the frame alone must do: the byte stream stays open until the end of the case
		defer conn.Close()
	}
	short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
	defer stop()
	request, reply := []byte("x"), []byte(nil)
	if err := conn.Invoke(short, "/peer/Hang", raw{}, &request, &reply); err == nil {
		return errors.New("a call that hangs was answered")
	}
	for ctx.Err() == nil {
		seen, err := c.unary(ctx, "/peer/Cancelled", nil)
		if err != nil {
			return err
		}
		if string(seen) != "0" {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("the handler was not cancelled")
}

func duplex(ctx context.Context, c client, closeSend bool) error {
	conn, err := c.conn(drpcmanager.Options{})
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := conn.NewStream(ctx, "/peer/Upper", raw{})
	if err != nil {
		return err
	}
	for _, text := range []string{"one", "two", strings.Repeat("three", 100_000)} {
		message := []byte(text)
		if err := stream.MsgSend(&message, raw{}); err != nil {
			return err
		}
		if err := stream.MsgRecv(&message, raw{}); err != nil || string(message) != strings.ToUpper(text) {
			return fmt.Errorf("%.20q for %.20q, %v", message, text, err)
		}
	}
	if closeSend {
		if err := stream.CloseSend(); err != nil {
			return err
		}
		var message []byte
		if err := stream.MsgRecv(&message, raw{}); !errors.Is(err, io.EOF) {
			return fmt.Errorf("no end after CloseSend: %v", err)
		}
		return nil
	}
	return stream.Close()
}
