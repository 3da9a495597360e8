import { render } from "preact";
import { findToken } from "./api";
import { App } from "./app";
import "./style.css";

findToken();
const root = document.getElementById("app");
if (root) render(<App />, root);
