package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/stream"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
)

// Dispatch a session, wait until it runs, send it a command and quit.
func Example() {
	url, stop := orchestrator()
	defer stop()
	ctx := context.Background()

	fleet, err := client.New(url, "the service token")
	if err != nil {
		log.Fatal(err)
	}
	s, err := fleet.CreateSession(ctx, api.CreateSession{Account: "acme", Name: "nightly"})
	if err != nil {
		log.Fatal(err)
	}
	if s, err = fleet.Wait(ctx, s.ID, api.Running); err != nil || s.State != api.Running {
		log.Fatal(s.Reason, err)
	}
	if _, err = fleet.Do(ctx, s.ID, webdriver.Command{Method: "POST", Path: "/url", Body: []byte(`{"url": "https://shop.example/"}`)}); err != nil {
		log.Fatal(err)
	}
	answer, err := fleet.Do(ctx, s.ID, webdriver.Command{Method: "GET", Path: "/title"})
	if err != nil {
		log.Fatal(err)
	}
	var title string
	if err := answer.Value(&title); err != nil {
		log.Fatal(err)
	}
	fmt.Println(title)
	if _, err := fleet.Do(ctx, s.ID, webdriver.Command{Method: "DELETE"}); err != nil {
		log.Fatal(err)
	}
	// Output: title of https://shop.example/
}

// Send many commands over one websocket. They run in the order in which they are sent.
func ExampleClient_Stream() {
	url, stop := orchestrator()
	defer stop()
	ctx := context.Background()

	fleet, err := client.New(url, "the service token")
	if err != nil {
		log.Fatal(err)
	}
	commands, err := fleet.Stream(ctx, "714f84b6")
	if err != nil {
		log.Fatal(err)
	}
	defer commands.Close()
	for _, page := range []string{"https://shop.example/a", "https://shop.example/b"} {
		if _, err := commands.Do(ctx, webdriver.Command{Method: "POST", Path: "/url", Body: fmt.Appendf(nil, `{"url": %q}`, page)}); err != nil {
			log.Fatal(err)
		}
		answer, err := commands.Do(ctx, webdriver.Command{Method: "GET", Path: "/title"})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(answer.Status, string(answer.Body))
	}
	// Output:
	// 200 {"value":"title of https://shop.example/a"}
	// 200 {"value":"title of https://shop.example/b"}
}

// Send commands without waiting for answers, over a websocket that is dialled again for five minutes when it breaks.
func ExampleClient_StreamWith() {
	url, stop := orchestrator()
	defer stop()
	ctx := context.Background()

	fleet, err := client.New(url, "the service token")
	if err != nil {
		log.Fatal(err)
	}
	commands, err := fleet.StreamWith(ctx, "714f84b6", stream.Options{Patience: 5 * time.Minute})
	if err != nil {
		log.Fatal(err)
	}
	defer commands.Close()
	var titles []*stream.Pending
	for _, page := range []string{"https://shop.example/a", "https://shop.example/b"} {
		if _, err := commands.Go(ctx, webdriver.Command{Method: "POST", Path: "/url", Body: fmt.Appendf(nil, `{"url": %q}`, page)}); err != nil {
			log.Fatal(err) // it was not sent
		}
		title, err := commands.Go(ctx, webdriver.Command{Method: "GET", Path: "/title"})
		if err != nil {
			log.Fatal(err)
		}
		titles = append(titles, title)
	}
	for _, title := range titles {
		answer, err := title.Wait(ctx)
		if errors.Is(err, stream.ErrUnknown) {
			log.Fatal("sent, and nobody knows what became of it: ", err)
		}
		fmt.Println(answer.Status, string(answer.Body))
	}
	// Output:
	// 200 {"value":"title of https://shop.example/a"}
	// 200 {"value":"title of https://shop.example/b"}
}

// Log in with one round trip: each step may use what the ones before it found.
func ExampleClient_Batch() {
	url, stop := orchestrator()
	defer stop()
	ctx := context.Background()

	fleet, err := client.New(url, "the service token")
	if err != nil {
		log.Fatal(err)
	}
	login, err := new(batch.Builder).
		Post("/url", map[string]string{"url": "https://shop.example/login"}).
		Find("#user").As("user").
		Post("/element/{user}/value", map[string]string{"text": "ada"}).
		Post("/elements", batch.Locator{Using: "css selector", Value: "button"}).As("buttons").
		Post("/element/{buttons#/0}/click", nil).
		WaitFor("#welcome", 5*time.Second).As("welcome").
		Script("arguments[0].scrollIntoView()", batch.Ref("welcome")).
		Get("/element/{welcome}/text").As("text").
		Request()
	if err != nil {
		log.Fatal(err) // a step that cannot work, named
	}
	response, err := fleet.Batch(ctx, "714f84b6", login)
	if err != nil {
		log.Fatal(err) // it was not run, or nobody knows
	}
	if err := response.Err(); err != nil {
		log.Fatal(err) // the first step that failed, and how
	}
	var text string
	if err := response.Results[len(response.Results)-1].Decode(&text); err != nil {
		log.Fatal(err)
	}
	fmt.Println(text)
	// Output: text of #welcome
}

// Follow a session's log until it has ended. A connection that breaks goes on where it was.
func ExampleClient_Follow() {
	url, stop := orchestrator()
	defer stop()
	ctx := context.Background()

	fleet, err := client.New(url, "the service token")
	if err != nil {
		log.Fatal(err)
	}
	for _, c := range []webdriver.Command{{Method: "POST", Path: "/refresh", Body: []byte(`{}`)}, {Method: "DELETE"}} {
		if _, err := fleet.Do(ctx, "714f84b6", c); err != nil {
			log.Fatal(err)
		}
	}
	err = fleet.Follow(ctx, "714f84b6", 0, func(e api.Event) error {
		fmt.Printf("%d %s %s%s\n", e.Seq, e.Kind, e.Route, e.Reason)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// 1 command POST /session/{session id}/refresh
	// 2 command DELETE /session/{session id}
	// 3 ended completed
}
