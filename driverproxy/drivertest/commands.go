package drivertest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"

	"github.com/driftstack/fleet/driverproxy/inert"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// elementKey names an element in W3C JSON.
const elementKey = "element-6066-11e4-a52e-4f735466cecf"

// pixel is a PNG of one pixel.
const pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

func (d *Driver) newSession(body []byte, host string) webdriver.Answer {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session != "" {
		return failed(webdriver.SessionNotCreated, "Could not create a session: The device is already paired with another WebDriver session.")
	}
	var request struct {
		Capabilities struct {
			AlwaysMatch json.RawMessage `json:"alwaysMatch"`
		} `json:"capabilities"`
	}
	if err := json.Unmarshal(body, &request); err != nil {
		return failed(webdriver.InvalidArgument, err.Error())
	}
	matched := map[string]any{}
	if request.Capabilities.AlwaysMatch != nil {
		if err := json.Unmarshal(request.Capabilities.AlwaysMatch, &matched); err != nil {
			return failed(webdriver.InvalidArgument, err.Error())
		}
	}
	maps.Copy(matched, map[string]any{"browserName": "fake", "browserVersion": "1.0", "platformName": "none"})
	d.asked = request.Capabilities.AlwaysMatch
	d.created++
	d.session = fmt.Sprintf("fake-%d", d.created)
	d.page = page{history: []string{"about:blank"}, windows: 1}
	d.offerLocked(matched, host)
	d.changedLocked(true)
	return value(map[string]any{"sessionId": d.session, "capabilities": matched})
}

func (d *Driver) command(id string, route webdriver.Route, known bool, q received, where string) webdriver.Answer {
	d.mu.Lock()
	defer d.mu.Unlock()
	if id != d.session || id == "" {
		return failed(webdriver.InvalidSessionID, "no such session")
	}
	if !known || route == webdriver.RouteBatch { // no driver knows it
		return failed(webdriver.UnknownCommand, "no such command")
	}
	if d.keep {
		d.executed = append(d.executed, Executed{Session: id, Route: route, Body: string(q.body), Bytes: q.bytes, CRC: q.crc})
	}
	var arguments map[string]any
	if len(q.body) > 0 {
		if err := json.Unmarshal(q.body, &arguments); err != nil {
			return failed(webdriver.InvalidArgument, "the body is no JSON object")
		}
	}
	return d.executeLocked(route, arguments, where)
}

func (d *Driver) executeLocked(route webdriver.Route, arguments map[string]any, where string) webdriver.Answer {
	p := &d.page
	switch route {
	case webdriver.RouteDeleteSession:
		d.endLocked()
		return value(nil)
	case webdriver.RouteCloseWindow:
		if p.windows--; p.windows == 0 {
			d.endLocked()
		}
		return value(p.handles())
	case webdriver.RouteNewWindow:
		p.windows++
		return value(map[string]string{"handle": fmt.Sprint("window-", p.windows), "type": "tab"})
	case webdriver.RouteNavigateTo:
		to, ok := arguments["url"].(string)
		if !ok {
			return failed(webdriver.InvalidArgument, "url must be a string")
		}
		p.history = append(p.history[:p.at+1], to)
		p.at++
		p.loads++
		return value(nil)
	case webdriver.RouteBack:
		p.at = max(0, p.at-1)
		return value(nil)
	case webdriver.RouteForward:
		p.at = min(len(p.history)-1, p.at+1)
		return value(nil)
	case webdriver.RouteGetCurrentURL:
		return value(p.history[p.at])
	case webdriver.RouteGetTitle:
		return value("title of " + p.history[p.at])
	case webdriver.RouteExecuteScript, webdriver.RouteExecuteAsyncScript:
		switch arguments["script"] {
		case inert.LookScript:
			return d.lookLocked()
		case inert.EmptyScript:
			return d.emptyLocked(arguments)
		}
		if args, ok := arguments["args"].([]any); ok && len(args) > 0 { // the echo
			return value(args[0])
		}
		return value(nil)
	case webdriver.RouteFindElement:
		if wanted := fmt.Sprint(arguments["value"]); d.late[wanted] > 0 {
			d.late[wanted]--
			return failed(webdriver.NoSuchElement, "no such element yet")
		}
		return value(map[string]string{elementKey: fmt.Sprint(arguments["value"])})
	case webdriver.RouteFindElements:
		return value([]map[string]string{{elementKey: fmt.Sprint(arguments["value"])}})
	case webdriver.RouteGetElementText:
		id, err := url.PathUnescape(path.Base(path.Dir(where)))
		if err != nil {
			return failed(webdriver.NoSuchElement, "no such element")
		}
		return value("text of " + id)
	case webdriver.RouteTakeScreenshot, webdriver.RouteTakeElementScreenshot:
		return value(pixel)
	case webdriver.RouteGetWindowHandle:
		return value("window-1")
	case webdriver.RouteGetWindowHandles:
		return value(p.handles())
	}
	return d.cookiesLocked(route, arguments, where)
}

func (d *Driver) cookiesLocked(route webdriver.Route, arguments map[string]any, where string) webdriver.Answer {
	p := &d.page
	named := func(name any) func(map[string]any) bool {
		return func(c map[string]any) bool { return c["name"] == name }
	}
	switch route {
	case webdriver.RouteAddCookie:
		c, ok := arguments["cookie"].(map[string]any)
		if !ok {
			return failed(webdriver.InvalidArgument, "cookie must be an object")
		}
		p.cookies = append(slices.DeleteFunc(p.cookies, named(c["name"])), c)
	case webdriver.RouteGetAllCookies:
		return value(append([]map[string]any{}, p.cookies...))
	case webdriver.RouteGetNamedCookie:
		if i := slices.IndexFunc(p.cookies, named(path.Base(where))); i >= 0 {
			return value(p.cookies[i])
		}
		return failed(webdriver.NoSuchCookie, "no such cookie")
	case webdriver.RouteDeleteCookie:
		p.cookies = slices.DeleteFunc(p.cookies, named(path.Base(where)))
	case webdriver.RouteDeleteAllCookies:
		p.cookies = nil
	}
	return value(nil)
}

// Pixel is the screenshot of every fake page.
func Pixel() []byte {
	b, err := base64.StdEncoding.DecodeString(pixel)
	if err != nil {
		return nil // a constant of this file: a test holds it
	}
	return b
}
