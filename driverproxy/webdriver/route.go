package webdriver

import (
	"net/http"
	"slices"
	"strings"
)

// Route is one endpoint out of the closed table below: what may be logged and counted of a command, since it can hold
// nothing a client sent. The zero Route stands for every command that is not in the table.
type Route uint8

// Endpoints of WebDriver (section 6.5), the Permissions and Storage Access extensions, and the few that Selenium
// clients and safaridriver add.
const (
	RouteUnknown Route = iota
	RouteDeleteSession
	RouteGetTimeouts
	RouteSetTimeouts
	RouteNavigateTo
	RouteGetCurrentURL
	RouteBack
	RouteForward
	RouteRefresh
	RouteGetTitle
	RouteGetWindowHandle
	RouteCloseWindow
	RouteSwitchToWindow
	RouteGetWindowHandles
	RouteNewWindow
	RouteSwitchToFrame
	RouteSwitchToParentFrame
	RouteGetWindowRect
	RouteSetWindowRect
	RouteMaximizeWindow
	RouteMinimizeWindow
	RouteFullscreenWindow
	RouteGetActiveElement
	RouteGetElementShadowRoot
	RouteFindElement
	RouteFindElements
	RouteFindElementFromElement
	RouteFindElementsFromElement
	RouteFindElementFromShadowRoot
	RouteFindElementsFromShadowRoot
	RouteIsElementSelected
	RouteIsElementDisplayed
	RouteGetElementAttribute
	RouteGetElementProperty
	RouteGetElementCSSValue
	RouteGetElementText
	RouteGetElementTagName
	RouteGetElementRect
	RouteIsElementEnabled
	RouteGetComputedRole
	RouteGetComputedLabel
	RouteElementClick
	RouteElementClear
	RouteElementSendKeys
	RouteGetPageSource
	RouteExecuteScript
	RouteExecuteAsyncScript
	RouteGetAllCookies
	RouteGetNamedCookie
	RouteAddCookie
	RouteDeleteCookie
	RouteDeleteAllCookies
	RoutePerformActions
	RouteReleaseActions
	RouteDismissAlert
	RouteAcceptAlert
	RouteGetAlertText
	RouteSendAlertText
	RouteTakeScreenshot
	RouteTakeElementScreenshot
	RoutePrintPage
	RouteSetPermission
	RouteSetStorageAccess
	RouteUploadFile
	RouteUploadFileLegacy
	RouteGetSafariPermissions
	RouteSetSafariPermissions
	RouteAttachSafariDebugger
	RouteBatch // ours: package batch
)

type endpoint struct{ method, path string }

// routes is never written to. A segment in braces stands for any one non-empty segment.
var routes = [...]endpoint{
	RouteDeleteSession:              {http.MethodDelete, ""},
	RouteGetTimeouts:                {http.MethodGet, "/timeouts"},
	RouteSetTimeouts:                {http.MethodPost, "/timeouts"},
	RouteNavigateTo:                 {http.MethodPost, "/url"},
	RouteGetCurrentURL:              {http.MethodGet, "/url"},
	RouteBack:                       {http.MethodPost, "/back"},
	RouteForward:                    {http.MethodPost, "/forward"},
	RouteRefresh:                    {http.MethodPost, "/refresh"},
	RouteGetTitle:                   {http.MethodGet, "/title"},
	RouteGetWindowHandle:            {http.MethodGet, "/window"},
	RouteCloseWindow:                {http.MethodDelete, "/window"},
	RouteSwitchToWindow:             {http.MethodPost, "/window"},
	RouteGetWindowHandles:           {http.MethodGet, "/window/handles"},
	RouteNewWindow:                  {http.MethodPost, "/window/new"},
	RouteSwitchToFrame:              {http.MethodPost, "/frame"},
	RouteSwitchToParentFrame:        {http.MethodPost, "/frame/parent"},
	RouteGetWindowRect:              {http.MethodGet, "/window/rect"},
	RouteSetWindowRect:              {http.MethodPost, "/window/rect"},
	RouteMaximizeWindow:             {http.MethodPost, "/window/maximize"},
	RouteMinimizeWindow:             {http.MethodPost, "/window/minimize"},
	RouteFullscreenWindow:           {http.MethodPost, "/window/fullscreen"},
	RouteGetActiveElement:           {http.MethodGet, "/element/active"},
	RouteGetElementShadowRoot:       {http.MethodGet, "/element/{element id}/shadow"},
	RouteFindElement:                {http.MethodPost, "/element"},
	RouteFindElements:               {http.MethodPost, "/elements"},
	RouteFindElementFromElement:     {http.MethodPost, "/element/{element id}/element"},
	RouteFindElementsFromElement:    {http.MethodPost, "/element/{element id}/elements"},
	RouteFindElementFromShadowRoot:  {http.MethodPost, "/shadow/{shadow id}/element"},
	RouteFindElementsFromShadowRoot: {http.MethodPost, "/shadow/{shadow id}/elements"},
	RouteIsElementSelected:          {http.MethodGet, "/element/{element id}/selected"},
	RouteIsElementDisplayed:         {http.MethodGet, "/element/{element id}/displayed"},
	RouteGetElementAttribute:        {http.MethodGet, "/element/{element id}/attribute/{name}"},
	RouteGetElementProperty:         {http.MethodGet, "/element/{element id}/property/{name}"},
	RouteGetElementCSSValue:         {http.MethodGet, "/element/{element id}/css/{property name}"},
	RouteGetElementText:             {http.MethodGet, "/element/{element id}/text"},
	RouteGetElementTagName:          {http.MethodGet, "/element/{element id}/name"},
	RouteGetElementRect:             {http.MethodGet, "/element/{element id}/rect"},
	RouteIsElementEnabled:           {http.MethodGet, "/element/{element id}/enabled"},
	RouteGetComputedRole:            {http.MethodGet, "/element/{element id}/computedrole"},
	RouteGetComputedLabel:           {http.MethodGet, "/element/{element id}/computedlabel"},
	RouteElementClick:               {http.MethodPost, "/element/{element id}/click"},
	RouteElementClear:               {http.MethodPost, "/element/{element id}/clear"},
	RouteElementSendKeys:            {http.MethodPost, "/element/{element id}/value"},
	RouteGetPageSource:              {http.MethodGet, "/source"},
	RouteExecuteScript:              {http.MethodPost, "/execute/sync"},
	RouteExecuteAsyncScript:         {http.MethodPost, "/execute/async"},
	RouteGetAllCookies:              {http.MethodGet, "/cookie"},
	RouteGetNamedCookie:             {http.MethodGet, "/cookie/{name}"},
	RouteAddCookie:                  {http.MethodPost, "/cookie"},
	RouteDeleteCookie:               {http.MethodDelete, "/cookie/{name}"},
	RouteDeleteAllCookies:           {http.MethodDelete, "/cookie"},
	RoutePerformActions:             {http.MethodPost, "/actions"},
	RouteReleaseActions:             {http.MethodDelete, "/actions"},
	RouteDismissAlert:               {http.MethodPost, "/alert/dismiss"},
	RouteAcceptAlert:                {http.MethodPost, "/alert/accept"},
	RouteGetAlertText:               {http.MethodGet, "/alert/text"},
	RouteSendAlertText:              {http.MethodPost, "/alert/text"},
	RouteTakeScreenshot:             {http.MethodGet, "/screenshot"},
	RouteTakeElementScreenshot:      {http.MethodGet, "/element/{element id}/screenshot"},
	RoutePrintPage:                  {http.MethodPost, "/print"},
	RouteSetPermission:              {http.MethodPost, "/permissions"},
	RouteSetStorageAccess:           {http.MethodPost, "/storageaccess"},
	RouteUploadFile:                 {http.MethodPost, "/se/file"},
	RouteUploadFileLegacy:           {http.MethodPost, "/file"},
	RouteGetSafariPermissions:       {http.MethodGet, "/apple/permissions"},
	RouteSetSafariPermissions:       {http.MethodPost, "/apple/permissions"},
	RouteAttachSafariDebugger:       {http.MethodPost, "/apple/attach_debugger"},
	RouteBatch:                      {http.MethodPost, "/driftstack/batch"},
}

// Routes lists every known route.
func Routes() []Route {
	all := make([]Route, 0, len(routes)-1)
	for i := 1; i < len(routes); i++ {
		all = append(all, Route(i))
	}
	return all
}

// Match finds the endpoint of a command; path is what follows /session/{session id}, still percent-encoded. A literal
// segment wins over a variable one, so /element/active is not an element. It does not allocate.
func Match(method, path string) (Route, bool) {
	for i := 1; i < len(routes); i++ {
		if routes[i].method == method && matchPath(routes[i].path, path) {
			return Route(i), true
		}
	}
	return RouteUnknown, false
}

// Methods are those that the path takes; without one it is an unknown command, not an unknown method.
func Methods(path string) (methods []string) {
	for i := 1; i < len(routes); i++ {
		if matchPath(routes[i].path, path) && !slices.Contains(methods, routes[i].method) {
			methods = append(methods, routes[i].method)
		}
	}
	return methods
}

// Endpoint finds the command's endpoint as "match a request" of the specification does. The error is an unknown command or an
// unknown method.
func (c Command) Endpoint() (Route, *Error) {
	route, ok := Match(c.Method, c.Path)
	switch {
	case ok:
		return route, nil
	case len(Methods(c.Path)) > 0:
		return route, &Error{Code: UnknownMethod, Message: "the path " + c.Path + " does not take " + c.Method}
	}
	return route, &Error{Code: UnknownCommand, Message: "no such command: " + c.Method + " " + c.Path}
}

func matchPath(template, path string) bool {
	for template != "" && path != "" {
		var want, got string
		want, template = segment(template)
		got, path = segment(path)
		if want == got && got != "" {
			continue
		}
		if got == "" || want[0] != '{' {
			return false
		}
	}
	return template == "" && path == ""
}

// segment takes "/seg" off the front of p; "" when p does not begin with a slash.
func segment(p string) (string, string) {
	if p[0] != '/' {
		return "", ""
	}
	if i := strings.IndexByte(p[1:], '/'); i >= 0 {
		return p[1 : i+1], p[i+1:]
	}
	return p[1:], ""
}

// String is the template, as in "POST /session/{session id}/url", or "unknown command".
func (r Route) String() string {
	if r == RouteUnknown || int(r) >= len(routes) {
		return "unknown command"
	}
	return routes[r].method + " /session/{session id}" + routes[r].path
}
